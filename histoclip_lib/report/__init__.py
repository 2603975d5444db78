"""What a reader sees: tables, figures, explorers, the model card, pages."""
