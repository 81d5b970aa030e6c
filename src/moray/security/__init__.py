"""Who belongs to a cluster, and how that is shown (TOKEN).

=========================================  ==================================================================
:mod:`~moray.security.token`               the one string that lets somebody join
:mod:`~moray.security.identity`            a process's key and certificate, and the TLS settings made of them
:mod:`~moray.security.authority`           the cluster's certificate authority, which the head keeps
:mod:`~moray.security.join`                how the token becomes a certificate
=========================================  ==================================================================

A session on one machine imports none of them: they load OpenSSL.
"""
