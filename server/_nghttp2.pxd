# The part of nghttp2 that is used: the HPACK decoder. Not for frames (server/_frames.pxd) and not for encoding (server/_hpack.pxd).
# cimported by server/_http2 and bench/_hpack. Source: nghttp2.h 1.52 as Debian 12 ships it.

from libc.stdint cimport uint8_t

cdef extern from "<nghttp2/nghttp2.h>" nogil:
    ctypedef struct nghttp2_hd_inflater:
        pass
    ctypedef struct nghttp2_nv:
        uint8_t* name
        uint8_t* value
        size_t namelen
        size_t valuelen
        uint8_t flags

    enum:
        NGHTTP2_HD_INFLATE_FINAL
        NGHTTP2_HD_INFLATE_EMIT

    int nghttp2_hd_inflate_new(nghttp2_hd_inflater** inflater)
    void nghttp2_hd_inflate_del(nghttp2_hd_inflater* inflater)
    ssize_t nghttp2_hd_inflate_hd2(nghttp2_hd_inflater* inflater, nghttp2_nv* pair, int* flags, const uint8_t* data, size_t size, int final)
    int nghttp2_hd_inflate_end_headers(nghttp2_hd_inflater* inflater)
