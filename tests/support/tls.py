"""Trust of a client in a server: a handshake in memory, with the files of a deployment."""

import ssl


def handshake(server, root, host):
    """A TLS handshake in memory, with the checks that a client makes."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(server / "server.crt", server / "server.key")
    ours = ssl.create_default_context(cafile=str(root))
    ours.verify_flags |= ssl.VERIFY_X509_STRICT
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        ours.wrap_bio(back, there, server_hostname=host),
        theirs.wrap_bio(there, back, server_side=True),
    ]
    done = [False, False]
    for _ in range(10):
        for i, end in enumerate(ends):
            try:
                end.do_handshake()
                done[i] = True
            except ssl.SSLWantReadError:
                continue
    return all(done)
