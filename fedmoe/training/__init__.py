"""One client's local round.

- `client`: Task -> local training -> Update
- `settings`: what the YAML says of it
"""
