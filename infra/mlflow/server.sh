#!/usr/bin/env bash
# MLflow's server with accounts: one process that keeps the studies of everybody.
#
#   MLFLOW_AUTH_ADMIN_PASSWORD=... MLFLOW_BACKEND_STORE_URI=postgresql://mlflow@db/mlflow infra/mlflow/server.sh FOLDER
#
# FOLDER keeps what the server needs besides the database: its key, and the artifacts unless
# MLFLOW_ARTIFACTS_DESTINATION is another place (s3://...). PGPASSWORD has the database's password, so that no command
# line does. MLflow's own variables say the rest: MLFLOW_HOST (127.0.0.1), MLFLOW_PORT (5000), MLFLOW_WORKERS (2),
# MLFLOW_SERVER_ALLOWED_HOSTS (the names by which it is called, where those are not addresses).

set -euo pipefail
umask 077

refuse() {
    echo "server.sh: $*" >&2
    exit 2
}

(($# == 1)) || refuse "usage: server.sh FOLDER"
[[ -n ${MLFLOW_BACKEND_STORE_URI:-} ]] ||
    refuse "set MLFLOW_BACKEND_STORE_URI to the database, such as postgresql://mlflow@db/mlflow"
password="${MLFLOW_AUTH_ADMIN_PASSWORD:-}"
((${#password} >= 12)) ||
    refuse "set MLFLOW_AUTH_ADMIN_PASSWORD to 12 characters or more: the server does not start without accounts"
[[ $password != password1234 ]] || refuse "that is the password that MLflow once shipped; choose another"
python -c 'import flask_wtf' 2>/dev/null || refuse "accounts need MLflow's extra: pip install 'mlflow[auth]'"

mkdir -p "$1/artifacts"
folder="$(cd "$1" && pwd)"
[[ -s $folder/key ]] || head -c 32 /dev/urandom | base64 --wrap=0 >"$folder/key"
# Whoever has an account reads every study, and changes only his own. The admin's password stays in the environment.
cat >"$folder/auth.ini" <<INI
[mlflow]
default_permission = READ
database_uri = ${MLFLOW_BACKEND_STORE_URI//%/%%}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI

MLFLOW_FLASK_SERVER_SECRET_KEY="$(<"$folder/key")"
export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH="$folder/auth.ini"
export MLFLOW_HOST="${MLFLOW_HOST:-127.0.0.1}" MLFLOW_WORKERS="${MLFLOW_WORKERS:-2}"
export MLFLOW_ARTIFACTS_DESTINATION="${MLFLOW_ARTIFACTS_DESTINATION:-$folder/artifacts}"
export MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # its workers would be eight more processes, and 2 GB
exec python -m mlflow server --app-name basic-auth
