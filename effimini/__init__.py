"""EffiMini: a compact image + text model of a product's rating: training, evaluation, prediction, command line."""
