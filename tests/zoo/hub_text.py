"""KerasHub's models of text and sound, tiny and with random weights."""

from .registry import Case, Skip, case, integers, random

try:
    import keras_hub
except ImportError:
    keras_hub = None

import keras

ROWS = 4
SPARSE = "sparse_categorical_crossentropy"


def _hub():
    if keras_hub is None:
        raise Skip('keras_hub is not installed: pip install "keras-trainkit[hub]"')
    return keras_hub.models


def _tokens(rows=ROWS, length=8):
    return {
        "token_ids": integers(30, rows, length),
        "padding_mask": (integers(5, rows, length) > 0).astype("int32"),
    }


def _bert():
    return _hub().BertBackbone(
        vocabulary_size=30, num_layers=2, num_heads=2, hidden_dim=8,
        intermediate_dim=16, max_sequence_length=8, num_segments=2,
    )  # fmt: skip


@case
def hub_bert_classifier():
    model = _hub().BertTextClassifier(
        _bert(), num_classes=3, activation="softmax", preprocessor=None, dropout=0.2
    )
    data = {**_tokens(), "segment_ids": integers(2, ROWS, 8)}
    return Case(model, data, integers(3, ROWS), loss=SPARSE)


@case
def hub_bert_classifier_of_strings():
    hub = _hub()
    if keras.backend.backend() != "tensorflow":
        raise Skip("its preprocessing needs TensorFlow beside the backend")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat"]
    tokenizer = hub.BertTokenizer(vocabulary=words)
    preprocessor = hub.BertTextClassifierPreprocessor(tokenizer, sequence_length=8)
    model = hub.BertTextClassifier(
        _bert(), num_classes=3, activation="softmax", preprocessor=preprocessor
    )
    text = ["the cat sat", "the dog", "a cat", "dog sat"]
    return Case(
        model,
        text,
        integers(3, ROWS),
        inputs=preprocessor(text),
        predicted=text,
        loss=SPARSE,
    )


@case
def hub_gpt2_causal_lm():
    hub = _hub()
    backbone = hub.GPT2Backbone(
        vocabulary_size=30, num_layers=2, num_heads=2, hidden_dim=8,
        intermediate_dim=16, max_sequence_length=8,
    )  # fmt: skip
    model = hub.GPT2CausalLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Case(model, _tokens(), integers(30, ROWS, 8, seed=1), loss=loss)


@case
def hub_gemma_causal_lm():
    hub = _hub()
    backbone = hub.GemmaBackbone(
        vocabulary_size=30, num_layers=2, num_query_heads=2, num_key_value_heads=1,
        hidden_dim=8, intermediate_dim=32, head_dim=4,
    )  # fmt: skip
    model = hub.GemmaCausalLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Case(model, _tokens(), integers(30, ROWS, 8, seed=1), loss=loss)


@case
def hub_gemma_with_lora():
    made = hub_gemma_causal_lm()
    made.model.backbone.enable_lora(2)
    return made


@case
def hub_roberta_backbone():
    model = _hub().RobertaBackbone(
        vocabulary_size=30, num_layers=2, num_heads=2, hidden_dim=8,
        intermediate_dim=16, max_sequence_length=8,
    )  # fmt: skip
    return Case(model, _tokens(), random(ROWS, 8, 8))


@case
def hub_whisper_backbone():
    model = _hub().WhisperBackbone(
        vocabulary_size=30, num_layers=2, num_heads=2, hidden_dim=8,
        intermediate_dim=16, num_mels=8, max_encoder_sequence_length=16,
        max_decoder_sequence_length=8,
    )  # fmt: skip
    tokens = _tokens()
    data = {
        "encoder_features": random(ROWS, 16, 8),
        "decoder_token_ids": tokens["token_ids"],
        "decoder_padding_mask": tokens["padding_mask"],
    }
    outputs = {
        "encoder_sequence_output": random(ROWS, 8, 8),
        "decoder_sequence_output": random(ROWS, 8, 8),
    }
    return Case(model, data, outputs)


@case
def hub_llama_causal_lm():
    hub = _hub()
    backbone = hub.LlamaBackbone(
        vocabulary_size=30, num_layers=2, num_query_heads=2, num_key_value_heads=1,
        hidden_dim=8, intermediate_dim=16,
    )  # fmt: skip
    model = hub.LlamaCausalLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Case(model, _tokens(), integers(30, ROWS, 8, seed=1), loss=loss)
