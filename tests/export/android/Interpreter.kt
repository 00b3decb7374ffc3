package org.tensorflow.lite

import java.nio.ByteBuffer

class Interpreter(byteBuffer: ByteBuffer, options: Options?) : AutoCloseable {
    class Options {
        fun setNumThreads(numThreads: Int): Options = TODO()
    }

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, signatureKey: String?): Unit = TODO()

    override fun close() = TODO()
}
