"""A finished run's adapter, for other programs and for answers.

- `saved`, `finished`: a run's folder, opened again; its results as plain values
- `generate`: answers at a chosen k
- `exported`: one export from end to end, with its certificate and `card`
- `formats`: the programs that read exports, and the commands that serve them; `architectures`
- `peft`, `per_expert`, `merged`: the forms; `changes`: what they are made of
- `reload`: the consumer's side of a proof, in a fresh process; `engine`: engines' own, with
  `vllm_side` and `llama_side`
- `prompts`: the wording of prompts, as it travels along
"""
