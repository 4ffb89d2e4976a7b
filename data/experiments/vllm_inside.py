"""What vLLM makes of a folder, run by the Python that has vLLM (``served_by_vllm.py`` calls this).

    python vllm_inside.py FOLDER DTYPE texts.json answers.json [--stand-in]

texts.json: {"read": token ids of texts, "continue": of beginnings, "count": greedy tokens of each}.
answers.json: {"logprobs": of each text's tokens but the first, "tokens": written, "versions"}.

--stand-in: on a CPU vLLM has no kernel for Int4 experts that scale their input, as Llama 4's do.
Its own loader fills its own tensors; these are then unpacked by the compressed-tensors package, and
multiplied here. Everything else is vLLM's.
"""

import json
import os
import sys

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "0"}

import torch
import vllm
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt


def stand_in() -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from vllm.model_executor.layers.fused_moe import config
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe
    from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
        compressed_tensors_moe_wna16 as place,
    )

    class Experts(cpu_moe.CPUUnquantizedExperts):
        def process_weights_after_loading(self, layer):
            pass

        def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, *rest, **more):
            for i, e in enumerate(topk_ids[:, 0].tolist()):
                gate, up = (hidden_states[i] @ w1[e].T).chunk(2)  # which have been scaled already
                output[i] = (torch.nn.functional.silu(gate) * up) @ w2[e].T

    def unpacked(packed, scale):
        rows, columns = packed.shape[1], 8 * packed.shape[2]
        numbers = [unpack_from_int32(p, 4, torch.Size((rows, columns))) for p in packed]
        grouped = torch.stack(numbers).unflatten(-1, (scale.shape[-1], -1)).to(scale.dtype)
        return torch.nn.Parameter((grouped * scale[..., None]).flatten(-2), requires_grad=False)

    def convert(layer, **given):
        layer.w13_weight = unpacked(layer.w13_weight_packed, layer.w13_weight_scale)
        layer.w2_weight = unpacked(layer.w2_weight_packed, layer.w2_weight_scale)

    cpu_moe.CPUExpertsInt4 = Experts
    place.select_wna16_moe_backend = lambda **given: (WNA16MoEBackend.CPU, Experts)
    place.convert_to_wna16_moe_kernel_format = convert
    place.make_wna16_moe_quant_config = lambda **given: config.FUSED_MOE_UNQUANTIZED_CONFIG


def main(folder: str, dtype: str, texts: str, answers: str, *more: str) -> None:
    if "--stand-in" in more:
        stand_in()
    with open(texts) as file:
        asked = json.load(file)
    options = dict(skip_tokenizer_init=True, enforce_eager=True, max_num_seqs=8)
    llm = LLM(folder, dtype=dtype, max_model_len=1024, **options)

    def run(prompts, **sampling):
        sampling = SamplingParams(temperature=0, detokenize=False, **sampling)
        return llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], sampling)

    read = run(asked["read"], max_tokens=1, prompt_logprobs=0)
    written = run(asked["continue"], max_tokens=asked["count"])
    said = {
        "logprobs": [
            [now[token].logprob for now, token in zip(r.prompt_logprobs[1:], text[1:], strict=True)]
            for r, text in zip(read, asked["read"], strict=True)
        ],
        "tokens": [list(w.outputs[0].token_ids) for w in written],
        "versions": {"vllm": vllm.__version__, "vllm's torch": torch.__version__},
    }
    with open(answers, "w") as file:
        json.dump(said, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
