"""What the server counts, for Prometheus: `GET /metrics`."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
STEP = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
"""Upper bounds of buckets in seconds."""


class ModelMetrics(NamedTuple):
    """The counters and histograms of one model."""

    prompt_tokens: Counter
    tokens: Counter
    waiting: Gauge
    running: Gauge
    slots: Gauge
    compile_seconds: Gauge
    first: Histogram
    step: Histogram


class Metrics:
    """Counters and histograms of one server, in a registry of its own. May be changed by any thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        model = ["model"]
        self.requests = Counter(
            "llm_jax_requests", "Responses by path and status.", ["path", "status"], registry=registry
        )
        self.left = Counter(
            "llm_jax_clients_left", "Clients that left before their response ended.", registry=registry
        )
        self.prompt_tokens = Counter(
            "llm_jax_prompt_tokens", "Tokens of prompts that were read.", model, registry=registry
        )
        self.tokens = Counter("llm_jax_generated_tokens", "Tokens written.", model, registry=registry)
        self.waiting = Gauge(
            "llm_jax_waiting", "Continuations that wait for a slot.", model, registry=registry
        )
        self.running = Gauge("llm_jax_running", "Slots in use.", model, registry=registry)
        self.slots = Gauge("llm_jax_slots", "Slots.", model, registry=registry)
        self.compile_seconds = Gauge(
            "llm_jax_compile_seconds", "Seconds spent on compilation.", model, registry=registry
        )
        self.first = Histogram(
            "llm_jax_time_to_first_token_seconds", "From the request to its first token.", model,
            buckets=FIRST, registry=registry,
        )  # fmt: skip
        self.step = Histogram(
            "llm_jax_step_seconds", "Of one call of the engine: a token for every running slot, or a prompt.",
            model, buckets=STEP, registry=registry,
        )  # fmt: skip

    def of_model(self, name: str) -> ModelMetrics:
        """Those of one model."""
        return ModelMetrics(**{field: getattr(self, field).labels(name) for field in ModelMetrics._fields})

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self.registry)
