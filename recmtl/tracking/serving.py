"""What MLflow runs to serve a registered model: this file travels with it, and is never imported by recmtl.

In: raw rows as MLflow hands them over (a pandas frame), or under ``mlflow models serve`` a request as it came. Out: a
pandas frame, one column per prediction. recmtl's own source lies beside this file in the model and is checked against
its hashes before it is imported.
"""

import hashlib
import inspect
import json
import logging
import os
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

_LARGEST = 1 << 20
"""Bytes of the list of recmtl's source."""


class Ranker(PythonModel):  # type: ignore[misc]
    """The package behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Check the source that came along, then load the package, which checks itself."""
        source = Path(context.artifacts["source"])
        check_source(source, source.parent.parent / "code")
        from recmtl.package import load_package

        self._package = load_package(Path(context.artifacts["package"]))
        read_requests(self._package)

    # MLflow reads the annotation: a frame is the one that needs no schema of MLflow's kind, and no warning.
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predictions for raw rows, in their order and under their index.

        Args:
            context: MLflow's.
            model_input: raw columns; those that are absent are missing in every row.
            params: :class:`recmtl.answering.Params`.

        Raises:
            MlflowException: a column cannot be what the schema says; a server answers with its one sentence (to any
                other exception it answers that something was unexpected).
        """
        from recmtl.answering import predictions
        from recmtl.errors import RunError, UserError

        try:
            return predictions(self._package, model_input, params)
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        except RunError as error:  # a prediction that is not finite
            raise MlflowException(str(error)) from error


def read_requests(package: Any) -> None:
    """Have MLflow's server, where this process is one, leave the reading of requests to :mod:`recmtl.answering`.

    MLflow reads them leniently: a row that is no object it leaves out, ``instances`` with different keys it puts beside
    each other's values, and to what it cannot read it answers with a traceback. The server looks its function up in its
    module at every request. An MLflow whose function is another keeps its own.
    """
    from mlflow.pyfunc import scoring_server

    serving = getattr(scoring_server, "_SERVER_MODEL_PATH", None)
    theirs = getattr(scoring_server, "invocations", None)
    if serving not in os.environ or theirs is None:
        return
    if list(inspect.signature(theirs).parameters) != ["data", "content_type", "model", "input_schema"]:
        return
    from recmtl.answering import answer
    from recmtl.errors import RunError, UserError

    def invocations(data: bytes, content_type: str | None, model: Any, input_schema: Any) -> Any:
        try:
            rows = answer(package, data, content_type).to_dict("records")
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        except RunError as error:
            raise MlflowException(str(error)) from error
        except Exception as error:
            logging.getLogger("recmtl").exception("a request that recmtl could not answer")
            raise MlflowException(
                f"unexpected {type(error).__name__} (a fault of recmtl's; the server's log shows where)"
            ) from error
        return scoring_server.InvocationsResponse(json.dumps({"predictions": rows}), 200, "application/json")

    scoring_server.invocations = invocations


def check_source(hashes: Path, code: Path) -> None:
    """Compare the source under ``code`` with ``hashes`` (``recmtl/…`` to SHA-256).

    Raises:
        RuntimeError: a file is missing, more than stated, or not what was registered.
    """
    if hashes.stat().st_size > _LARGEST:
        raise RuntimeError(f"{hashes}: this is no list of recmtl's source: it is larger than {_LARGEST:,} bytes")
    try:
        stated = dict(json.loads(hashes.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise RuntimeError(f"{hashes}: this is no list of recmtl's source ({type(error).__name__})") from None
    there = {
        path.relative_to(code).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in code.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if there != stated:
        names = sorted(name for name in {*there, *stated} if there.get(name) != stated.get(name))
        raise RuntimeError(f"{code}: recmtl's source is not what was registered: {', '.join(names[:5])}")


set_model(Ranker())
