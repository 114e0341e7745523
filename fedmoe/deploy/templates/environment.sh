# Sourced by the other scripts: what Flower may do here, and where state is kept.
export FLWR_TELEMETRY_ENABLED=0
export FLWR_DISABLE_UPDATE_CHECK=1
# fedmoe is installed on every machine; Flower must not fetch dependencies of its own.
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export TOKENIZERS_PARALLELISM=false
# Where the README installs fedmoe.
if [ -d /opt/fedmoe/venv/bin ]; then PATH=/opt/fedmoe/venv/bin:$PATH; fi
umask 077
state=${FEDMOE_STATE:-$here/state}
export FLWR_HOME="$state/flwr"
mkdir -p "$FLWR_HOME" "$state/work"
# Flower puts the working folder on Python's path: it must hold no `clients/` and no `server/`.
cd "$state/work"
