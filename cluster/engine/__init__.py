"""The asyncio shells around the pure core: streams, links, gateway, dispatcher, runtime."""
