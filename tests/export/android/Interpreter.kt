package org.tensorflow.lite

import java.nio.ByteBuffer

class Interpreter(byteBuffer: ByteBuffer, options: Options?) : AutoCloseable {
    class Options {
        fun setNumThreads(numThreads: Int): Options = error("a declaration alone")
    }

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, signatureKey: String?): Unit = error("a declaration alone")

    override fun close() = error("a declaration alone")
}
