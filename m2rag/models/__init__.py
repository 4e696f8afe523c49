"""M2-BERT as Hugging Face models, registered with the Auto classes on import."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from m2rag.models.checkpoints import from_reference, load_checkpoint
from m2rag.models.configuration_m2_bert import M2BertConfig
from m2rag.models.modeling_m2_bert import (
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertModel,
)

AutoConfig.register("m2_bert", M2BertConfig, exist_ok=True)
AutoModel.register(M2BertConfig, M2BertModel, exist_ok=True)
AutoModelForMaskedLM.register(M2BertConfig, M2BertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(M2BertConfig, M2BertForSequenceClassification, exist_ok=True)

__all__ = [
    "M2BertConfig",
    "M2BertForMaskedLM",
    "M2BertForSequenceClassification",
    "M2BertModel",
    "from_reference",
    "load_checkpoint",
]
