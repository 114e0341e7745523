"""Nemotron-H (arXiv:2512.20848): a layer is Mamba-2, attention, dense or experts; no gates."""

from __future__ import annotations

from fedmoe.models.families.family import Family, Form, Size

FAMILY = Family(
    name="Nemotron-H",
    model_type="nemotron_h",
    block="mixer",
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    groups=True,
    shared=True,
    form=Form(gated=False),
    notes="LoRA on its attention layers, none on Mamba layers, nor on projections to and from the "
    "narrower space that experts may have; layers for multi-token prediction are not loaded",
    step="chunk_size",
    tiny={
        "n_routed_experts": 8,
        "moe_intermediate_size": 16,
        "moe_latent_size": 24,
        "moe_shared_expert_intermediate_size": 16,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.0,
        "head_dim": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "moe"],
    },
    sizes=(
        Size(
            "Nemotron 3 Nano 30B-A3B",
            {
                "hidden_size": 2688,
                "num_key_value_heads": 2,
                "mamba_num_heads": 64,
                "n_routed_experts": 128,
                "num_experts_per_tok": 6,
                "moe_intermediate_size": 1856,
                "moe_shared_expert_intermediate_size": 3712,
                "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
            },
            "https://huggingface.co/nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16/blob/main/config.json",
            "31.6 B, 3.6 B active",
        ),
        Size(
            "Nemotron 3 Super 120B-A12B",
            {
                "num_key_value_heads": 2,
                "n_routed_experts": 512,
                "num_experts_per_tok": 22,
                "moe_intermediate_size": 2688,
                "moe_latent_size": 1024,
                "moe_shared_expert_intermediate_size": 5376,
                "hybrid_override_pattern": "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*"
                "EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME",
            },
            "https://huggingface.co/nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16/blob/main/config.json",
            "120 B, 12 B active",
        ),
    ),
)
