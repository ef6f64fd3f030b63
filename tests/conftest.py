"Tests run offline. Hypothesis draws few inputs, the same in every run; `make fuzz` draws 72 times as many from a seed of its own."
import os

from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
COMMON = dict(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)  # other work on the machine says nothing about a test
settings.register_profile("test", derandomize=True, max_examples=25, **COMMON)
settings.register_profile("fuzz", max_examples=1800, **COMMON)
settings.load_profile("test")
