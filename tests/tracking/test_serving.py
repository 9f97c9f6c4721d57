"""What ``mlflow models serve`` answers, over HTTP: the documented request, every form, and what is malformed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recmtl.package import load_package, verify_package
from recmtl.tracking.client import quietly
from recmtl.tracking.registry import _source_hashes, save_pyfunc

DOCUMENTED = Path(__file__).parents[2] / "docs" / "serving.md"

Post = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def post(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Post]:
    """Posts to a server of the sample's model; it takes 4 to 10 seconds to start."""
    place = tmp_path_factory.mktemp("serving")
    with quietly():
        save_pyfunc(place / "model", verify_package(saved), _source_hashes(), tags={})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(place / "model")]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with (place / "log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=place, env=environment, start_new_session=True
        )

    def send(body: Any, path: str = "/invocations", kind: str | None = "application/json") -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            text = body if isinstance(body, (str, bytes)) else json.dumps(body)
            connection.request("POST", path, text, {} if kind is None else {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    try:
        deadline = time.monotonic() + 100
        while True:
            try:
                send({})
                break
            except OSError:
                assert server.poll() is None, (place / "log").read_text()
                assert time.monotonic() < deadline, (place / "log").read_text()
                time.sleep(0.1)
        yield send
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_the_documented_request(post: Post, saved: Path) -> None:
    page = DOCUMENTED.read_text()
    found = re.search(
        r"curl -H 'Content-Type: application/json' http://[\d.:]+/invocations -d '(.*?)'\n```", page, re.S
    )
    assert found is not None
    status, said = post(found[1])
    assert status == 200, said
    request = json.loads(found[1])
    everything = load_package(saved).predict_pandas(pd.DataFrame(request["dataframe_records"]))
    order = np.argsort(-everything["click"].to_numpy(), kind="stable")[: request["params"]["top_k"]]
    assert [row["row"] for row in said["predictions"]] == order.tolist()
    assert [row["rank"] for row in said["predictions"]] == [1, 2]
    got = pd.DataFrame(said["predictions"])[everything.columns]
    np.testing.assert_allclose(got, everything.iloc[order], rtol=1e-5)


@pytest.mark.parametrize("form", ["dataframe_records", "instances", "dataframe_split"])
def test_every_documented_form(post: Post, saved: Path, form: str) -> None:
    rows = [{"user_id": 1, "item_id": "a", "likes": [7, 8]}, {"user_id": 2, "item_id": None, "likes": None}]
    split = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    status, said = post({form: split if form == "dataframe_split" else rows})
    assert status == 200, said
    expected = load_package(saved).predict_pandas(pd.DataFrame(rows))
    assert list(said["predictions"][0]) == list(expected.columns)
    np.testing.assert_allclose(pd.DataFrame(said["predictions"]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("{not json", "this request is no JSON"),
        ("", "this request is no JSON"),
        ({"rows": []}, "not 'rows'"),
        ({"instances": [{"age": [1]}]}, r"^features\.age: column 'age' is List\(Int64\)"),
        ({"instances": [{"content": [1.0]}]}, r"^features\.content: "),
        ({"dataframe_split": {"columns": ["user_id", "age"], "data": [[1, 2], [3]]}}, r"data\[1\]: 1 values for 2"),
        ({"inputs": {"user_id": [1], "age": [1, 2]}}, "has 1 values"),
        ({"dataframe_records": [7]}, "a row is an object"),
        ({"dataframe_records": []}, "no rows"),
        ({"instances": [{"nothing": 1}]}, "none of the columns that the model reads"),
        ({"instances": [{"age": 1}], "params": {"top_k": 1.5}}, r"params\.top_k: a whole number"),
    ],
)
def test_malformed_requests(post: Post, body: Any, match: str) -> None:
    status, said = post(body)
    assert status == 400
    assert said["error_code"] == "INVALID_PARAMETER_VALUE"
    assert re.search(match, said["message"]), said
    assert "\n" not in said["message"]
    assert "Traceback" not in json.dumps(said)


def test_a_body_without_a_type_is_json_and_another_type_is_refused(post: Post) -> None:
    assert post({"instances": [{"age": 1}]}, kind=None)[0] == 200
    status, said = post("age\n1\n", kind="text/csv")
    assert status == 400
    assert "application/json, not text/csv" in said["message"]
