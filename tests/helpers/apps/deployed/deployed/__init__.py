"""An app whose rounds are as quick as a deployment's can be."""
