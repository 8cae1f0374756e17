"""Program one: the asyncio service that asks X, keeps every answer durable and ships it to S3."""
