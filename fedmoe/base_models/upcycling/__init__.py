"""A sparse MoE made from a dense, Llama-like language model: `fedmoe upcycle`.

In reading order:
    recipe.py     the settings: model, method, text
    source.py     the dense model and its tokenizer: a folder, a Hub id, a GGUF file, a package
    dense.py      a dense layer, and the models that have such layers
    split.py      one dense layer cut into a shared part and experts; Qwen2-MoE's class
    groups.py     the neurons of each expert: neighbours, or clusters of like ones
    router.py     the router of such a layer, fitted in closed form
    copies.py     one dense layer copied into every expert; Mixtral's class
    observe.py    inputs of the dense layers on a little text, and the loss on other text
    upcycle.py    all of it in order: load, convert, check, write, measure

To add a method, write a `@section` with the methods and properties of `Copy`, and name it in
`recipe.Method`.
"""
