from m2rag_kernels.short_conv.naive import short_conv
