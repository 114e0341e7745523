"""A small endpoint in OpenAI's format, to try an adapter at any tier on one machine.

It is no production server: one model answers one request at a time.

- `limits`: what a request may cost
- `request`: the fields of a request, and why it is refused
- `engine`: the queue before the one model
- `answer`: answers in OpenAI's format
- `functions`: function calls in the text of an answer
- `app`: the addresses
- `guard`: what is refused before a request is read
- `server`: the socket, and clients that are slow
"""
