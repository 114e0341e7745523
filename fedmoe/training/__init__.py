"""One client's local round.

- `client`: Task -> local training -> Update
- `profile`: which experts a client's own data activate, from which it chooses a subset
- `router_losses`: what is added to the loss for routing's sake; `similarity`: CKA of experts
- `settings`: what the YAML says of it
"""
