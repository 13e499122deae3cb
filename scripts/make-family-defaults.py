#!/usr/bin/env python3
"""Writes what transformers' configuration classes take for keys that config.json does not have.

Needs a Python package that the product itself does not: pip install transformers

Of each model_type in services/model/families the keys that those files name, as the class calls them, where they have a value. To be run
again when a family reads another key:
  scripts/make-family-defaults.py > services/model/families/defaults.ts
"""

import dataclasses
import json
import re
from itertools import takewhile
from pathlib import Path
from textwrap import wrap

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

FAMILIES = Path(__file__).parent.parent / "services/model/families"
HEADER = f"""\
/**
 * What a key is that config.json does not have, by model_type: as the configuration classes of transformers {transformers.__version__} have it, of nested
 * models those of the language model. Written by scripts/make-family-defaults.py.
 */
// biome-ignore format: one type is one paragraph
export const defaults: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {{"""

# Types of publishers' own code, and those that transformers has for the same.
PUBLISHED = {"kimi_k2": "deepseek_v3", "minimax_m3": "minimax_m3_vl", "ernie4_5_moe_vl": "ernie4_5_vl_moe"}

# In place of a space.
HELD = "\0"

# Lists that follow from the number of layers: what says the same of any number, and the word whose leading places are counted.
LEADING = {"dense": "first_k_dense_replace", "hash_moe": "num_hash_layers"}
LISTS = {"mlp_layer_types", "layer_types", "moe_layers", "layers_block_type"}


def text_class(model_type):
    name = PUBLISHED.get(model_type, model_type)
    if f"{name}_text" in CONFIG_MAPPING:
        return CONFIG_MAPPING[f"{name}_text"]
    found = CONFIG_MAPPING[name]
    return type(found().text_config) if "text_config" in found.sub_configs else found


def leading(kinds):
    """How many layers in front are of another kind than the others."""
    word = kinds[0]
    count = len(list(takewhile(lambda kind: kind == word, kinds)))
    assert len(set(kinds[count:])) == 1, kinds
    return {LEADING[word]: count}


def read(config_class, words):
    """The fields that `words` names; None is left out. A field beside another that it stands for is left out too."""
    made = config_class()
    fields = {field.name: field.default for field in dataclasses.fields(config_class) if field.name in words}
    found = {}
    for name, default in fields.items():
        value = getattr(made, name) if default is None else default
        if name in LISTS or config_class.attribute_map.get(name) in fields:
            continue
        if isinstance(value, transformers.PreTrainedConfig):
            value = {key: each for key, each in value.to_dict().items() if key in words and key != "model_type"}
        if value is not None:
            found[name] = value
    kinds = getattr(made, "mlp_layer_types", None)
    if kinds and kinds[0] in LEADING and "mlp_layer_types" in fields:
        found.update(leading(kinds))
    if "layers_block_type" in fields:
        found["hybrid_override_pattern"] = made.hybrid_override_pattern
    return found


def written(value):
    if isinstance(value, dict):
        return "{ " + pairs(value) + " }"
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)


def pairs(values):
    """No line ends between a key and its value."""
    return ", ".join(f"{key}:{HELD}{written(value)}" for key, value in values.items())


def main():
    sources = "".join(path.read_text() for path in sorted(FAMILIES.glob("*.ts")) if path.name != "defaults.ts")
    words = set(re.findall(r"\w+", sources)) - {"text_config"}
    types = re.findall(r"'(\w+)'", "".join(re.findall(r"\btypes: \[(.*?)\]", sources, re.DOTALL)))
    print(HEADER)
    for model_type in sorted(types):
        lines = wrap(pairs(read(text_class(model_type), words)) + ",", 104, break_long_words=False)
        print(f"  {model_type}: {{", *(f"    {line}".replace(HELD, " ") for line in lines), "  },", sep="\n")
    print("};")


if __name__ == "__main__":
    main()
