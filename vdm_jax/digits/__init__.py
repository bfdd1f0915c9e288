"""The captioned digits of the demo: how clips are drawn, stored, and scored by rules with known floor and ceiling."""
