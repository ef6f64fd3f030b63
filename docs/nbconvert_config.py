"What `make notebooks` leaves out of the outputs: progress bars, warnings, widgets."
from nbconvert.preprocessors import Preprocessor


class DropNoise(Preprocessor):
    "Runs after the execution."
    def preprocess_cell(self, cell, resources, index):
        noise = lambda output: output.get("name") == "stderr" or any("widget" in kind for kind in output.get("data", {}))
        if cell.cell_type == "code": cell.outputs = [output for output in cell.outputs if not noise(output)]
        return cell, resources


c = get_config()  # noqa: F821 (nbconvert defines it)
c.NotebookExporter.preprocessors = [DropNoise]
