"""Takes TLS off: what comes to PORT over TLS goes on to TARGET, a port of this machine, as it is, and back.

tls_front.py PORT TARGET FOLDER

Writes into the folder, as `ca.pem`, the authority that its certificate comes from.
"""

import asyncio
import pathlib
import ssl
import sys

from certificates import certificates


async def pass_on(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def main(port, target, folder):
    async def serve(reader, writer):
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pass_on(reader, onward_writer), pass_on(onward_reader, writer))

    key, certificate = certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])))
