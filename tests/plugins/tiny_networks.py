"""Tiny random networks of the classes that labelers are told to use, saved in folders as the real ones are."""

from __future__ import annotations

import torch
from tiny_models import SIZE, SMALL, SPECIAL, VISION, WORDS, save_captioner, word_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
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
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    Owlv2Processor,
    PreTrainedTokenizerFast,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2Model,
    Sam2VisionConfig,
    Sam3Config,
    Sam3Model,
    Sam3VisionConfig,
    Sam3ViTConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SwinConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTForImageClassification,
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


def bert_tokenizer(folder):
    """A tokenizer of words in the layout of BERT, for the texts of a Grounding DINO."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "cat", "dog", "cup", "wine", "glass", "sofa"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizer(vocab=str(folder / "vocab.txt")), len(words)


def save_grounding_dino(folder):
    tokenizer, words = bert_tokenizer(folder)
    stages = {"image_size": 128, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
    text = BertConfig(**SMALL, vocab_size=words, max_position_embeddings=64)
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 32, "num_queries": 12}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**stages, out_indices=[2, 3, 4]), text_config=text, **layers, **heads,
        max_text_len=32,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    pictures = GroundingDinoImageProcessorPil(size={"height": 128, "width": 128})
    GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder)


def clip_tokenizer(longest=16):
    """A tokenizer of words with the special ones of CLIP, which end and pad a text."""
    words = ["<|startoftext|>", "<|endoftext|>", "a", "cat", "dog", "cup", "wine", "glass", "sofa", "thing"]
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<|endoftext|>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)]
    )
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=longest, **special)


CLIP_TEXT = {**SMALL, "vocab_size": 10, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1,
             "pad_token_id": 1}  # fmt: skip


def save_owlv2(folder):
    vision = {**SMALL, "image_size": 64, "patch_size": 16}
    config = Owlv2Config(text_config=CLIP_TEXT, vision_config=vision, projection_dim=16)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    pictures = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    Owlv2Processor(pictures, clip_tokenizer()).save_pretrained(folder)


def save_sam2(folder):
    """Without the configuration of its image processor's class, which needs torchvision; its sizes are stated."""
    stages = {"hidden_size": 8, "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2]}
    backbone = Sam2HieraDetConfig(
        **stages, image_size=[128, 128], blocks_per_stage=[1, 1, 2, 1], window_size_per_stage=[8, 4, 4, 4],
        global_attention_blocks=[3], patch_kernel_size=[7, 7], patch_stride=[4, 4], patch_padding=[3, 3],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=16,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )  # fmt: skip
    prompts = {"hidden_size": 16, "image_size": 128, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    network = Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
    for parameter in network.parameters():  # random layers as small as they are initialized give empty masks
        parameter.data += 0.2 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 128, "width": 128}}')


def save_sam3(folder):
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    backbone = Sam3ViTConfig(
        **small, num_hidden_layers=2, image_size=112, patch_size=14, window_size=4, global_attn_indexes=[1],
        pretrain_image_size=56,
    )  # fmt: skip
    vision = Sam3VisionConfig(
        backbone_config=backbone, fpn_hidden_size=32, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
    )
    text = {**CLIP_TEXT, **small, "projection_dim": 32}
    one = {**small, "num_layers": 1}
    network = Sam3Model(
        Sam3Config(
            vision_config=vision,
            text_config=text,
            geometry_encoder_config=one,
            detr_encoder_config=one,
            detr_decoder_config={**one, "num_queries": 6},
            mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
        )
    )
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 112, "width": 112}}')


def save_clip(folder):
    vision = {**SMALL, **VISION}
    config = CLIPConfig(text_config=CLIP_TEXT, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def save_siglip(folder):
    text = {**SMALL, "vocab_size": 10, "max_position_embeddings": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config={**SMALL, **VISION})).save_pretrained(folder)
    SiglipImageProcessorPil(**SIZE).save_pretrained(folder)


def save_dinov2(folder):
    Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **VISION)).save_pretrained(
        folder
    )
    ViTImageProcessorPil(**SIZE).save_pretrained(folder)


def save_classifier(folder, classes):
    """An image classifier with these classes."""
    config = ViTConfig(**SMALL, **VISION, id2label=dict(enumerate(classes)))
    network = ViTForImageClassification(config)
    torch.nn.init.normal_(network.classifier.weight)
    network.save_pretrained(folder)
    ViTImageProcessorPil(**SIZE).save_pretrained(folder)
