"""An authority of the tests, and a certificate of it for servers on this machine."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def certificates(folder):
    """Makes both in a folder, the authority as `ca.pem`; answers with the paths of the server's key and certificate."""
    now = datetime.datetime.now(datetime.timezone.utc)

    def made(name, issuer, public, signer, extensions):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def named(name):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])

    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = named("the tests' authority")
    own = x509.BasicConstraints(ca=True, path_length=0)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    (folder / "ca.pem").write_bytes(made(issuer, issuer, authority.public_key(), authority, [own]))
    (folder / "server.pem").write_bytes(made(named("a server of the tests"), issuer, key.public_key(), authority, [names]))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "server.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    return folder / "server.key", folder / "server.pem"
