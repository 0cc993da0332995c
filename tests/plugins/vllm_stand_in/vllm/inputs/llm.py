"""vllm.inputs.llm."""

TextPrompt = TokensPrompt = dict
