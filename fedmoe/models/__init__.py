"""The frozen sparse MoE and what we put into it: the only door to transformers and peft.

- `families`: where experts and routers sit, one file a family; whether a router honours `top_k`
- `tasks`: causal, sequence to sequence, image to label: in what their forward passes differ
- `vit`: V-MoE, which transformers lacks
- `experts`: the expert fast path (one autograd function) and its routed-token counts;
  `expert_state`: what each layer's carry
- `adapted`: one resident model, a flat adapter buffer, the current budget
- `stored`, `frozen`, `offload`: other forms and places of frozen experts; `subset`: some of them
- `gating`: how tokens and experts choose each other within a budget of k
- `rescaling`: none, static or learned factors on a sparse layer's output
- `folder`: a model's folder, which appears whole or not at all
- `build`: load the built-in base, a folder or a Hub id
- `decode`: greedy answers
- `peft_export`: our adapter as a PEFT folder, and the proof that it is the same
"""
