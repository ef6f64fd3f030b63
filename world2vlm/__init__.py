"World models as training-time teachers: a scene, a motion, the view that a teacher imagines after it, and the questions."
from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {  # name -> module:name, imported at its first use
    "Scene": "world2vlm.core.records:Scene",
    "Action": "world2vlm.core.camera:Action",
    "intrinsics": "world2vlm.core.camera:intrinsics",
    "plan": "world2vlm.core.actions:plan",
    "parse_actions": "world2vlm.core.actions:parse_actions",
    "format_actions": "world2vlm.core.actions:format_actions",
    "transitions_of": "world2vlm.core.records:transitions_of",
    "room_scenes": "world2vlm.scenes.room:room_scenes",
    "photo_scenes": "world2vlm.scenes.photos:photo_scenes",
    "load_teacher": "world2vlm.teachers.base:load_teacher",
    "TASKS": "world2vlm.tasks.tasks:TASKS",
    "open_student": "world2vlm.students.models:open_student",
    "load_settings": "world2vlm.core.config:load_settings",
    "show_images": "world2vlm.core.plotting:show_images",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC: raise AttributeError(f"module 'world2vlm' has no attribute {name!r}; it offers {', '.join(__all__)}")
    module, symbol = _PUBLIC[name].split(":")
    globals()[name] = getattr(import_module(module), symbol)
    return globals()[name]


def __dir__(): return sorted({*globals(), *__all__})
