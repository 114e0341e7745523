#!/bin/sh
# The SuperNode of client {{ node.number }}, {{ node.name }} (tier {{ node.tier }}): it connects to the server and
# trains what it is sent. It needs no open port.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/environment.sh"
exec flower-supernode --superlink {{ fleet.address }} --host 127.0.0.1 --port {{ node.port }} \
{% if fleet.insecure %}
    --insecure \
{% else %}
    --root-certificates "$here/ca.crt" --auth-supernode-private-key "$here/node.key" \
{% endif %}
    --node-config "name=\"{{ node.name }}\" {% if node.data %}data=\"{{ node.name }}={{ node.data }}\"{% else %}clients=\"{{ node.number }}\"{% endif %} {% if masked and not fleet.insecure %}signing_key=\"$here/node.key\" known_keys=\"$here/owners.pub\" {% endif %}state=\"$state/clients\""
