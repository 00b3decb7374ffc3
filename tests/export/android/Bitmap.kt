package android.graphics

class Bitmap {
    enum class Config { ARGB_8888 }

    companion object {
        @JvmStatic
        fun createBitmap(colors: IntArray, width: Int, height: Int, config: Config): Bitmap = error("a declaration alone")
    }
}

object Color {
    @JvmStatic
    fun rgb(red: Int, green: Int, blue: Int): Int = error("a declaration alone")
}
