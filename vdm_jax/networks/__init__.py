"""Networks: linen modules and the frozen configs that describe them."""
