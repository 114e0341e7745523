#!/bin/sh
# The SuperLink: knows clients and runs, and starts the server app. It listens on loopback alone{% if proxied %},
# for its control interface asks nobody who they are; the proxy lets clients' requests through{% endif %}.
# Killed and started again, it knows what it knew: state is in a database.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/environment.sh"
exec flower-superlink --host {{ superlink_host }} --port {{ fleet.superlink_port }} \
    --database "$state/superlink.db" --disable-runtime-dependency-installation \
{% if fleet.insecure %}
    --insecure
{% else %}
    --enable-supernode-auth --ssl-ca-certfile "$here/ca.crt" \
    --ssl-certfile "$here/server.crt" --ssl-keyfile "$here/server.key"
{% endif %}
