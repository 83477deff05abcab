"""Networks: a backbone that makes features of pictures, a head that makes embeddings of features."""
