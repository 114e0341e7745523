"""One client's local round.

- `client`: Task -> local training -> Update; `loss`: cross-entropy over response tokens
- `learner`: what the optimiser moves; `side_by_side`: the rounds of several clients in one
- `local_client`: a client as a local step of one's own sees it
- `steps`: how far a local round is, for a display or a node's log
- `profile`: the experts that a client's own data activate, from which it chooses a subset
- `router_losses`: additions to the loss for routing's sake; `similarity`: CKA of experts
- `settings`: the section `training` of a config
"""
