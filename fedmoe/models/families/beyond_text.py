"""Sparse models that read or write more than text, and so are refused."""

from __future__ import annotations

from fedmoe.models.families.family import Refused

NO_CLASS = (
    "reads {what} beside text, and transformers' AutoModelForCausalLM has no class for it; data, "
    "losses and scores here are those of text"
)


def _refused(name: str, model_type: str, what: str = "pictures", closest: str = "") -> Refused:
    return Refused(name, model_type, NO_CLASS.format(what=what), closest)


BEYOND_TEXT = (
    _refused("Aria", "aria", closest="aria_text"),
    _refused("DeepSeek-OCR 2", "deepseek_ocr2"),
    _refused("ERNIE 4.5 VL", "ernie4_5_vl_moe", closest="ernie4_5_moe"),
    _refused("GLM-4.5V", "glm4v_moe", closest="glm4_moe"),
    _refused("GLM-5 with pictures", "glm5_next"),
    _refused("Inkling", "inkling_mm_model", "pictures and sound"),
    _refused("Inkling 2", "inkling2", closest="inkling2_text"),
    _refused("MiniMax-M3", "minimax_m3_vl", closest="minimax_m3_vl_text"),
    _refused("Mistral 4", "mistral4", closest="deepseek_v3"),
    _refused("Mistral Large 4", "mistral_large4"),
    _refused("Muse Spark", "muse_spark", "pictures and sound"),
    _refused("Qwen3-Omni", "qwen3_omni_moe", "pictures and sound", "qwen3_moe"),
    _refused("Qwen3-Omni Thinker", "qwen3_omni_moe_thinker", "pictures and sound", "qwen3_moe"),
    _refused("Qwen3-VL", "qwen3_vl_moe", closest="qwen3_moe"),
    _refused("Step 3.7", "step3p7"),
    _refused("Unlimited-OCR", "unlimited_ocr"),
    Refused(
        "Diffusion Gemma",
        "diffusion_gemma",
        "writes by diffusion rather than one token after another, and reads pictures",
    ),
)
"""By the `model_type` of a whole model; a language model that is trained alone has its own."""
