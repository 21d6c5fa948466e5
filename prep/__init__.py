"""From the raw files of Amazon Reviews 2023 to a nested, stratified, leak-free sample; tables only, without torch."""
