"""Tiny random networks of the classes that labelers are told to use, saved in folders as the real ones are."""

from __future__ import annotations

import torch
from tiny_models import SIZE, SMALL, SPECIAL, VISION, WORDS, save_captioner, word_tokenizer
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessorPil,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessorPil,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessorPil,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

LABELS = {0: "teapot", 1: "kettle"}


def save_dpt(folder):
    layers = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    neck = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8, "reassemble_factors": [4, 2, 1, 0.5]}
    sizes = {"image_size": 64, "patch_size": 16, "backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False}
    DPTForDepthEstimation(DPTConfig(**layers, **neck, **sizes)).save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)


def save_glpn(folder):
    """Its pictures keep their sizes, but for a remainder of 32."""
    stages = {"num_encoder_blocks": 4, "depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4}
    GLPNForDepthEstimation(GLPNConfig(**stages, decoder_hidden_size=8)).save_pretrained(folder)
    GLPNImageProcessorPil().save_pretrained(folder)


def save_yolos(folder, **size):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes = {"image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 5}
    YolosForObjectDetection(YolosConfig(**small, **sizes, id2label=LABELS)).save_pretrained(folder)
    YolosImageProcessorPil(size=size or {"height": 64, "width": 64}).save_pretrained(folder)


def save_vitpose(folder):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "out_indices": [1]}
    backbone = VitPoseBackboneConfig(image_size=[64, 48], patch_size=[16, 16], **small)
    VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17)).save_pretrained(folder)
    VitPoseImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(folder)


def save_eomt(folder):
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 1, "num_blocks": 1}
    sizes = {"image_size": 64, "patch_size": 16, "num_queries": 6, "num_upscale_blocks": 1}
    EomtForUniversalSegmentation(EomtConfig(**small, **sizes, id2label=LABELS)).save_pretrained(folder)
    EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True).save_pretrained(folder)


def save_segformer(folder):
    stages = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 8]}
    layers = {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 1], "mlp_ratios": [1, 1]}
    config = SegformerConfig(**stages, **layers, decoder_hidden_size=8, id2label={**LABELS, 2: "background"})
    network = SegformerForSemanticSegmentation(config)
    torch.nn.init.normal_(network.decode_head.classifier.weight)
    network.to(torch.bfloat16).save_pretrained(folder)  # as many published weights are
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)


def save_vision_encoder_decoder(folder):
    decoder = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, **SPECIAL)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**SMALL, **VISION), decoder)
    network = VisionEncoderDecoderModel(config)
    network.generation_config.decoder_start_token_id = 2
    save_captioner(network, folder)
    ViTImageProcessorPil(**SIZE).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


def save_llava(folder):
    text = LlamaConfig(**SMALL, **SPECIAL, vocab_size=len(WORDS), num_key_value_heads=2)
    vision = CLIPVisionConfig(**{**SMALL, "num_hidden_layers": 2}, **VISION)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=WORDS.index("<image>"))
    save_captioner(LlavaForConditionalGeneration(config).to(torch.bfloat16), folder)
    template = (
        "{% for m in messages %}USER : {% for c in m.content %}"
        "{{ '<image> ' if c.type == 'image' else c.text }}{% endfor %}{% endfor %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        word_tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    processor.save_pretrained(folder)
