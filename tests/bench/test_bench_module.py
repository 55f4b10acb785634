"""`python -m bench.module`: what a Module costs beside a compiled model, and an example's speed."""

import json
import sys

from bench import module


def test_a_module_is_measured_beside_a_compiled_model(monkeypatch, tmp_path, backend):
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.module", "--images", "256", "--rounds", "1"])
    module.main()
    result = json.loads((tmp_path / f"module-{backend}.json").read_text())
    assert list(result["figures"]) == ["cnn"]  # nothing of Lightning without its Python
    assert len(result["figures"]["cnn"]["ratios"]) == 1
    assert all(result["figures"]["cnn"][name] > 0 for name in ("compiled", "module", "ratio"))


def test_an_example_has_a_speed():
    assert module.ours("gan", 256, 1) > 0
