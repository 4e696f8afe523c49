"""The whole sequence mixing of a layer as one operation. Its definition is `M2BertMixer.forward` on the naive path."""
