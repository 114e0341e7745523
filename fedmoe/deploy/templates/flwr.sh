#!/bin/sh
# `flwr` for this server's SuperLink, which it knows as `fleet`.
set -eu
app=$(cd "$(dirname "$0")/app" && pwd)
given=$PWD
here=$(cd "$(dirname "$0")" && pwd)
. "$here/environment.sh"
# flwr 1.41 wants a certificate's absolute path.
cat > "$FLWR_HOME/config.toml" <<END
[superlink]
default = "fleet"

[superlink.fleet]
address = "{{ superlink_address }}"
{% if fleet.insecure %}
insecure = true
{% else %}
root-certificates = "$here/ca.crt"
{% endif %}
END
cd "$given"
# `flwr.sh run` without more submits this deployment's app.
if [ $# = 1 ] && [ "$1" = run ]; then
    set -- run "$app" fleet --stream
fi
exec flwr "$@"
