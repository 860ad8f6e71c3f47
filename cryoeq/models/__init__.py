"""Networks: pose encoder and pose head, decoders of the map; ``export`` holds trained encoders without escnn."""
