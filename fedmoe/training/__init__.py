"""One client's local round.

- `client`: Task -> local training -> Update
- `router_losses`: what is added to the loss for routing's sake; `similarity`: CKA of experts
- `settings`: what the YAML says of it
"""
