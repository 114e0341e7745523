"""A sparse MoE made from a dense, Llama-like language model: `fedmoe upcycle`.

In reading order:
    recipe.py     the settings: which model, which method, which text
    source.py     the dense model and its tokenizer: a folder, a Hub id, a GGUF file, a package
    dense.py      what a dense layer is, and which models have such layers
    split.py      one dense layer cut into a shared part and experts; Qwen2-MoE's class
    groups.py     which neurons make up an expert: neighbours, or clusters of like ones
    router.py     the router of such a layer, fitted in closed form
    copies.py    one dense layer copied into every expert; Mixtral's class
    observe.py    what the dense layers see on a little text, and the loss on other text
    upcycle.py    all of it in order: load, convert, check, write, measure

To add a method, write its file with a `@section` and a function that turns a dense layer into the
tensors of a sparse one, and name it in `Method` and in `upcycle.convert`.
"""
