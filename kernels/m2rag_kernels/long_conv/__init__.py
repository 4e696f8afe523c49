from m2rag_kernels.long_conv.naive import long_conv
