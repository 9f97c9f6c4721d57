#!/bin/sh
# Run the daily pipeline for a day, yesterday (UTC) by default:  cron.sh CONFIG [DAY]
#
# One run of a config at a time (flock); progress into NAME-DAY.log under RECMTL_LOGS (runs/logs), the summary as a line of
# NAME.jsonl there. What failed for want of data or of a server is tried again, RECMTL_TRIES times, every
# RECMTL_WAIT seconds. Says something, so that cron sends mail, only when the day failed. Exits as the pipeline does.
set -u
config=$(realpath "$1") || exit 2
day=${2:-$(date -u -d yesterday +%F)}
home=$(realpath "$(dirname "$0")/../..")
python=${RECMTL_PYTHON:-$home/.venv/bin/python}
name=$(basename "${config%.*}")
logs=${RECMTL_LOGS:-$home/runs/logs}
cd "$home" || exit 2
mkdir -p "$logs" || exit 2

exec 9>"$logs/$name.lock"
if ! flock --nonblock 9; then
    echo "recmtl: $name is still at an earlier run; $day was not begun" >&2
    exit 1
fi

tries=${RECMTL_TRIES:-3}
while :; do
    "$python" pipelines/batch_training.py "$config" --date "$day" >>"$logs/$name.jsonl" 2>>"$logs/$name-$day.log" 9>&-
    code=$?
    tries=$((tries - 1))
    [ "$code" -eq 1 ] && [ "$tries" -gt 0 ] || break
    sleep "${RECMTL_WAIT:-900}"
done
case $code in
0 | 3) ;; # promoted; refused, and the champion stays
*)
    echo "recmtl: $name of $day failed with exit code $code" >&2
    tail -n 5 "$logs/$name-$day.log" >&2
    ;;
esac
exit "$code"
