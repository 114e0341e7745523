"""The families that facts describe; one that needs code besides has a file of its own."""

from dataclasses import replace

from fedmoe.models.families.family import ATTENTION, LATENT_ATTENTION, Family, Form

OLMOE = Family(name="OLMoE", model_type="olmoe", normalised="config")
"""OLMoE (arXiv:2409.02060): many small experts; weights are not normalised as published."""

MIXTRAL = Family(name="Mixtral", model_type="mixtral")
"""Mixtral (arXiv:2401.04088): eight large experts, two per token."""

QWEN2_MOE = Family(name="Qwen2-MoE", model_type="qwen2_moe", normalised="config", shared=True)
"""Qwen1.5-MoE and Qwen2-MoE: small experts beside a gated shared one."""

QWEN3_MOE = Family(name="Qwen3-MoE", model_type="qwen3_moe", normalised="config")
"""Qwen3-MoE (arXiv:2505.09388): 128 small experts, none shared."""

QWEN3_NEXT = Family(
    name="Qwen3-Next",
    model_type="qwen3_next",
    attention=(*ATTENTION, "in_proj_qkvz", "linear_attn.out_proj"),
    normalised="config",
    shared=True,
)
"""Qwen3-Next: layers of linear attention between layers of full attention."""

QWEN3_5_MOE = Family(
    name="Qwen3.5-MoE",
    model_type="qwen3_5_moe_text",
    attention=(*ATTENTION, "in_proj_qkv", "linear_attn.out_proj"),
    shared=True,
)
"""Qwen3.5-MoE's language model: linear and full attention, a gated shared expert."""

DEEPSEEK_V2 = Family(
    name="DeepSeek-V2",
    model_type="deepseek_v2",
    attention=LATENT_ATTENTION,
    normalised="never",
    scaled="routed_scaling_factor",
    groups=True,
    shared=True,
)
"""DeepSeek-V2 and V2.5 (arXiv:2405.04434): latent attention, shared experts, a dense start."""

DEEPSEEK_V3 = Family(
    name="DeepSeek-V3",
    model_type="deepseek_v3",
    attention=LATENT_ATTENTION,
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    groups=True,
    shared=True,
)
"""DeepSeek-V3 (arXiv:2412.19437): sigmoid scores, groups, a bias that balances the choice."""

GPT_OSS = Family(
    name="GPT-OSS",
    model_type="gpt_oss",
    router="router",
    scores="softmax of the chosen",
    form=Form(bias=True, transposed=True, own_gate=True),
    notes="biases stay frozen; a published MXFP4 checkpoint is loaded in full",
)
"""GPT-OSS (arXiv:2508.10925): biases, transposed weights, its own clamped gate."""

JAMBA = Family(
    name="Jamba",
    model_type="jamba",
    block="feed_forward",
    router="router",
    normalised="never",
    notes="LoRA on its attention layers, none on Mamba layers",
    step=8,
)
"""Jamba (arXiv:2403.19887, 2408.12570): Mamba and attention layers, experts every other layer."""

GRANITEMOE = Family(
    name="Granite-MoE",
    model_type="granitemoe",
    block="block_sparse_moe",
    router="router",
    scores="softmax of the chosen",
    scale_logits=lambda config, logits: logits / config.logits_scaling,
)
"""Granite-MoE: a softmax over the chosen logits alone; logits are divided by a constant."""

GRANITEMOESHARED = replace(
    GRANITEMOE,
    name="Granite-MoE with a shared expert",
    model_type="granitemoeshared",
    shared=True,
    notes="the shared expert sits beside the sparse block",
)
"""Granite-MoE with a dense layer beside the experts."""

GRANITEMOEHYBRID = replace(
    GRANITEMOE,
    name="Granite 4 hybrid",
    model_type="granitemoehybrid",
    shared=True,
    notes="LoRA on its attention layers, none on Mamba layers",
    step="mamba_chunk_size",
)
"""Granite 4 hybrid: Mamba-2 and attention layers, experts beside a dense layer."""

GLM4_MOE = replace(DEEPSEEK_V3, name="GLM-4.5", model_type="glm4_moe", attention=ATTENTION)
"""GLM-4.5 (arXiv:2508.06471): DeepSeek-V3's routing with grouped-query attention."""

GLM4_MOE_LITE = replace(DEEPSEEK_V3, name="GLM-4.7-Flash", model_type="glm4_moe_lite")
"""GLM's light MoE: DeepSeek-V3's routing and latent attention."""

ERNIE4_5_MOE = Family(name="ERNIE 4.5", model_type="ernie4_5_moe", corrected=True, shared=True)
"""ERNIE 4.5: a softmax with a bias to choose, normalised over the chosen."""

MINIMAX = Family(
    name="MiniMax-01",
    model_type="minimax",
    attention=(*ATTENTION, "qkv_proj", "out_proj"),
    # transformers 5.23: of a padded batch, lightning attention loses later tokens from its cache.
    padded_cache=False,
    step="block_size",
)
"""MiniMax-Text-01 (arXiv:2501.08313): lightning attention between softmax attention."""

MINIMAX_M2 = Family(name="MiniMax-M2", model_type="minimax_m2", scores="sigmoid", corrected=True)
"""MiniMax-M2: sigmoid scores with a bias to choose, without groups."""

HUNYUAN_V1_MOE = Family(name="Hunyuan-A13B", model_type="hunyuan_v1_moe", shared=True)
"""Hunyuan-A13B: a linear layer inside the router, in fp32; a shared expert."""

DOTS1 = replace(DEEPSEEK_V3, name="dots.llm1", model_type="dots1", attention=ATTENTION)
"""dots.llm1 (arXiv:2506.05767): DeepSeek-V3's routing with grouped-query attention."""

AFMOE = Family(
    name="AFMoE",
    model_type="afmoe",
    router="router",
    scores="sigmoid",
    scaled="route_scale",
    corrected=True,
    shared=True,
)
"""Arcee's AFMoE (Trinity): sigmoid scores, a bias to choose, gated attention."""

FLEX_OLMO = replace(OLMOE, name="FlexOlmo", model_type="flex_olmo")
"""FlexOlmo (arXiv:2507.07024): experts trained apart and put together."""

LFM2_MOE = Family(
    name="LFM2-MoE",
    model_type="lfm2_moe",
    block="feed_forward",
    attention=("q_proj", "k_proj", "v_proj", "self_attn.out_proj"),
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    notes="LoRA on its attention layers, none on convolutions",
)
"""LFM2-MoE: short convolutions between attention layers, a bias to choose."""

EXAONE_MOE = replace(DEEPSEEK_V3, name="EXAONE-MoE", model_type="exaone_moe", attention=ATTENTION)
"""EXAONE-MoE: DeepSeek-V3's routing with sliding windows."""

SOLAR_OPEN = replace(DEEPSEEK_V3, name="Solar Open", model_type="solar_open", attention=ATTENTION)
"""Solar Open: DeepSeek-V3's routing, sparse from the first layer."""

MELLUM = replace(QWEN3_MOE, name="Mellum", model_type="mellum")
"""Mellum 2: Qwen3-MoE's routing with sliding windows."""

DEEPSEEK_V32 = replace(
    DEEPSEEK_V3,
    name="DeepSeek-V3.2",
    model_type="deepseek_v32",
    notes="the indexer that picks the tokens attention sees stays frozen",
)
"""DeepSeek-V3.2: DeepSeek-V3 whose attention sees the tokens that an indexer picks."""

GLM_MOE_DSA = replace(DEEPSEEK_V32, name="GLM-5", model_type="glm_moe_dsa")
"""GLM-5: DeepSeek-V3.2's layers under another name."""

AXK1 = replace(DEEPSEEK_V3, name="A.X K1", model_type="axk1")
"""A.X K1: DeepSeek-V3 with a norm behind its sparse layers."""

AXK2 = replace(
    DEEPSEEK_V32, name="A.X K2", model_type="axk2", attention=(*LATENT_ATTENTION, "q_gate_proj")
)
"""A.X K2: latent attention with a gate and an indexer, DeepSeek-V3's routers."""

HY_V4 = replace(DEEPSEEK_V32, name="Hunyuan 4", model_type="hy_v4", form=Form(own_gate=True))
"""Hunyuan 4: several residual streams, a clamped gate, DeepSeek-V3.2's attention."""

DOTS3_NOTE = replace(DEEPSEEK_V32, name="dots 3", model_type="dots3_note_text")
"""dots 3's language model: latent attention in windows and with an indexer."""

KIMI_LINEAR = replace(
    DEEPSEEK_V3,
    name="Kimi Linear",
    model_type="kimi_linear",
    attention=(*ATTENTION, "kv_a_proj_with_mqa", "kv_b_proj"),
)
"""Kimi Linear (arXiv:2510.26692): delta attention between latent attention."""

BAILING_HYBRID = replace(KIMI_LINEAR, name="Ling 3 hybrid", model_type="bailing_hybrid")
"""Ling 3: delta attention between latent attention."""

BEAM = Family(
    name="Beam",
    model_type="beam",
    scores="sigmoid",
    normalised="config",
    corrected=True,
    groups=True,
    form=Form(own_gate=True),
    notes="its constant factor is on the output of a sparse layer, not on its weights",
    scale_logits=lambda config, logits: (
        config.final_logit_softcapping * (logits / config.final_logit_softcapping).tanh()
    ),
)
"""Beam: windows and full attention, a capped output head, an activation in fp32."""

COHERE2_MOE = Family(
    name="Command A+",
    model_type="cohere2_moe",
    scores="softmax of the chosen",
    shared=True,
    scale_logits=lambda config, logits: logits * config.logit_scale,
)
"""Command A+: sparse layers beside attention rather than behind it, scaled logits."""

HY_V3 = Family(
    name="Hunyuan 3",
    model_type="hy_v3",
    scores="sigmoid",
    scaled="router_scaling_factor",
    corrected=True,
    shared=True,
)
"""Hunyuan 3: sigmoid scores, a bias outside the router that balances the choice."""

FLINT = Family(name="Flint", model_type="flint", scores="sigmoid", normalised="config", shared=True)
"""Flint: sigmoid scores without a correction, attention in windows, a shared expert."""

KOLIBRI1 = Family(
    name="Kolibri",
    model_type="kolibri1",
    scores="sigmoid",
    normalised="config",
    corrected=True,
    shared=True,
)
"""Kolibri: sigmoid scores, chosen by corrected logits, and a shared expert."""

LAGUNA = Family(
    name="Laguna",
    model_type="laguna",
    scores="sigmoid",
    corrected=True,
    shared=True,
    notes="its constant factor is on the output of a sparse layer, not on its weights",
)
"""Laguna: gated attention in windows, sigmoid scores, a shared expert."""

GRANITEMOE_SWA = replace(
    GRANITEMOE, name="Granite-MoE with windows", model_type="granitemoe_swa", shared=True
)
"""Granite-MoE with attention in windows and a dense layer beside the experts."""

MIMO_V2_FLASH = replace(
    DEEPSEEK_V3, name="MiMo-V2-Flash", model_type="mimo_v2_flash", attention=ATTENTION, shared=False
)
"""MiMo-V2-Flash (arXiv:2601.02780): windows with sinks, DeepSeek-V3's routers."""

MINIMAX_M3_VL = Family(
    name="MiniMax-M3",
    model_type="minimax_m3_vl_text",
    scores="sigmoid",
    corrected=True,
    shared=True,
    form=Form(own_gate=True),
    notes="text alone; a constant factor is on the output of a sparse layer, not on its weights",
)
"""MiniMax-M3's language model: a clamped gate, sigmoid scores, a shared expert."""

ARIA = Family(
    name="Aria",
    model_type="aria_text",
    router="router",
    scores="softmax of the chosen",
    shared=True,
    form=Form(transposed=True),
    notes="text alone",
)
"""Aria's language model: experts laid out as (in, out), a wide shared one."""

QWEN4_EXP = Family(
    name="Qwen4 experimental",
    model_type="qwen4_exp_text",
    attention=(*ATTENTION, "in_proj_qkv", "linear_attn.out_proj"),
    normalised="config",
    shared=True,
    notes="text alone; the indexer that picks the tokens attention sees stays frozen",
)
"""Qwen4's language model: residual streams, linear attention, attention with an indexer."""

INKLING2 = Family(
    name="Inkling 2",
    model_type="inkling2_text",
    scores="sigmoid",
    scaled="route_scale",
    corrected=True,
    form=Form(own_gate=True),
    notes="text alone; on transformers 5.24 experts alone (adapter.attention=false)",
    scale_logits=lambda config, logits: (
        config.final_logit_softcapping * (logits.float() / config.final_logit_softcapping).tanh()
    )[..., : config.unpadded_vocab_size],
)
"""Inkling 2's language model: capped gates and logits, convolutions, layers that attend."""

NEMOTRON_H = replace(
    DEEPSEEK_V3,
    name="Nemotron-H",
    model_type="nemotron_h",
    block="mixer",
    attention=ATTENTION,
    form=Form(gated=False),
    notes="LoRA on its attention layers, none on Mamba layers, nor on projections to and from the "
    "narrower space that experts may have; layers for multi-token prediction are not loaded",
    step="chunk_size",
)
"""Nemotron-H (arXiv:2512.20848): a layer is Mamba-2, attention, dense or experts; no gates."""
