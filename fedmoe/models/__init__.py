"""The frozen sparse MoE and its adapter, built on transformers.

- `families`: where experts and routers sit, one file a family; whether a router honours `top_k`
- `tasks`: causal and sequence to sequence: in what their forward passes differ
- `experts`: the expert fast path (one autograd function) and its routed-token counts;
  `expert_state`: LoRA and settings of each layer; `routed`: rows grouped by expert, of which a
  GPU's host is told no sizes; `fused`: the same path in Triton's kernels (`model.kernels`);
  `kernels`: which of the two computes, and why
- `captured`: steps as CUDA graphs, one for each budget and shape of batch (`model.graphs`)
- `together`: the adapters of several clients in one model; `shared_pass`: products for all rows of
  an expert, and for those of one client; `packed`: clients' batches as one sequence
- `adapted`: one resident model, a flat adapter buffer, the current budget
- `adapter_layout`: what LoRA adds, in which order
- `memory`: other forms and places of frozen experts, subsets of them, a dry run of memory
- `gating`: how tokens and experts choose each other within a budget of k
- `rescaling`: none, static or learned factors on a sparse layer's output; `modulation`
- `build`: load the built-in base, a folder or a Hub id, and check it once
- `folder`: where a model is, and which of its files and weights are refused
- `conventions`: special tokens, generation settings and positions that a folder states
- `decode`: greedy answers
- `pretrained_gating`: the gating that a base was pretrained under
- `private`: undocumented parts of torch and transformers
"""
