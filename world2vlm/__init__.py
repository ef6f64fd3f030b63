__version__ = "0.1.0"


def __getattr__(name: str):
    "The classes that diffusers looks for here when it opens a saved pipeline; nothing heavy is imported before that."
    from importlib import import_module
    homes = {"MultiViewUNet": "svc_unet", "SVCScheduler": "svc_scheduler", "StableVirtualCameraPipeline": "svc_pipeline"}
    if name not in homes: raise AttributeError(f"module 'world2vlm' has no attribute '{name}'")
    return getattr(import_module(f"world2vlm.{homes[name]}"), name)
